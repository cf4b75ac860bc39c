"""Fronts: adapters that let clients of one protocol or another in. They translate, and hold nothing of their own."""
