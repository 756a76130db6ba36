"""Judging a bundle by pictures that did not make it, and the report of that: a page, and its figures."""
