"""What keeps results and caches whole: verify, merge, gc, doctor."""
