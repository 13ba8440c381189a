"""The methods: each builds the table of one family of samplers."""
