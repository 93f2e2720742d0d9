"""Write summaries as tables, text and pictures."""
