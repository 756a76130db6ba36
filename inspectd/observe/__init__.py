"""What people and supervisors see: metrics, health, logs, systemd."""
