"""What happens to a corpus between its reader and its batches."""
