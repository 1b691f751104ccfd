"""A report that takes its time: killed in the middle, it goes on from the last page that was saved."""
