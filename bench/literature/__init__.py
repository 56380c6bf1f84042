"""The literature's numbers: read, shown as the surveys have them, put beside ours, cited."""
