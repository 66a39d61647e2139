"""The soak: honest and hostile traffic against a real service, and faults in between (`make soak`)."""
