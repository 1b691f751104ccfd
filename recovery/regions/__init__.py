"""Three regions on one machine: network namespaces, joined by lines that delay, jitter and can be cut."""
