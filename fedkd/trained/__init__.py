"""What a run leaves to be used: its clients' trained models, in this process and as plain files."""
