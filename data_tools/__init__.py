"""Builds a curated image set: scan, measure, join, decide, report, export; every rejection explained."""
