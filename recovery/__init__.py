"""Recovery of the whole: backups that were proved, ways back to a point in time, and drills that measure both."""
