"""Those who take part: how each server is started, and with which settings."""
