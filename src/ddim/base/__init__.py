"""What everything stands on: errors, files, records, devices, progress."""
