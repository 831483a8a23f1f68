"""What every process of the lab needs of the system: starting and ending processes, ports,
signals."""
