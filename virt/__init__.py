"""One hypervisor: its libvirt, its guests' XML, disks and images. Knows neither Celery nor Postgres."""
