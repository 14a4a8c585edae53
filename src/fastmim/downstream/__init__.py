"""Tasks that use a pre-trained backbone."""
