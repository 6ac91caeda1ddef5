"""The streaming loop and the interfaces of its parts."""
