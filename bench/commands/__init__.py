"""Groups of commands; light to import, each command imports what it needs."""
