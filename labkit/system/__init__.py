"""What the lab needs of the operating system: processes, ports, signals."""
