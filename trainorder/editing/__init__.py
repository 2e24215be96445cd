"""What changes params.yaml: settings and sweeps, seeds, a recommended order. Comments and spacing stay."""
