"""The commands of the lab: `protocol`, `demo`, `evaluate`."""
