"""Tables, progress and sentences that the commands print."""
