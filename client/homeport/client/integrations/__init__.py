"""Homeport where people already are: each module serves one library, which it alone imports."""
