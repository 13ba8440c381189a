"""Who runs a network: worker threads with a batch each, and what stands in place of plain torch."""
