"""Container images: what an engine holds of them, and how they are read and written without one."""
