"""Containers, through the API that Docker and Podman share."""
