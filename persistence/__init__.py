"""Everything that speaks SQL; nothing else does."""
