"""`kvnode import` against real nodes."""
