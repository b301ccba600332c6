"""Tables of many runs: methods x pairs x trials from one YAML."""
