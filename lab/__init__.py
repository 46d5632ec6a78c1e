"""Real hypervisors on one machine: libvirtd in namespaces, Postgres, Redis and a tiny guest."""
