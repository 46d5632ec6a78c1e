"""One hypervisor: libvirt, domain XML, disks and images. Knows neither Celery nor Postgres."""
