"""Webhooks to receivers that are busy, away for a moment, or gone for good: who is tried again, and who is not."""
