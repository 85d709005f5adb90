"""MFN and Graph-MFN: LSTMs side by side, and a memory of what they do together."""
