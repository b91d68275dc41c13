"""Scores as one self-contained HTML page: what ``nima report`` makes."""

from nima_client.report.page import ReportOptions, build_page
from nima_client.report.thumbnails import Thumbnails

__all__ = ["ReportOptions", "Thumbnails", "build_page"]
