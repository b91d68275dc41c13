"""Typed client of the NIMA photo scoring service."""
