"""Probes and embeddings of frozen backbones."""
