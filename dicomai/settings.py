"""The configuration: one TOML file, environment variables over it, checked before anything starts."""
