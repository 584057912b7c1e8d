"""A worker's life: from the fork to the first request, one request after the other, and the end."""
