"""A device sends texts, images and videos to a server: certificates and ephemeral keys."""
