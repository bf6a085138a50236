"""Queues and delays that every unit is made of."""
