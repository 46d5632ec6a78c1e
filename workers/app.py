"""The Celery application; each reliability setting with its reason."""

from typing import Any

from celery import Celery
from kombu import Queue

from tasks.chores import FAN_OUT_POWER_SYNC, SWEEP
from tasks.image_chores import FAN_OUT_IMAGE_UPKEEP
from workers.kombu_guard import guard_redis_transport
from workers.settings import Settings


def build_app(settings: Settings, *, node: str) -> Celery:
    """Build the application of one process.

    Args:
        settings: where broker and results are, and the intervals of the chores.
        node: this process's name; its unacknowledged messages have keys of their own.
    """
    guard_redis_transport()
    app = Celery("innkeeper", set_as_current=False)
    app.conf.update(
        broker_url=settings.broker_url.get_secret_value(),
        result_backend=settings.result_url.get_secret_value(),
        broker_connection_retry_on_startup=True,
        # The default of 100 tries ends the worker after 48 minutes without Redis.
        broker_connection_max_retries=None,
        broker_connection_timeout=3,
        broker_transport_options=_transport_options(node),
        # A dead Redis must not hold a step's thread; the sweeper sends later.
        task_publish_retry_policy={
            "max_retries": 2,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 0.5,
        },
        result_backend_transport_options={"retry_policy": {"timeout": 3}},
        redis_socket_timeout=5,
        redis_socket_connect_timeout=3,
        redis_socket_keepalive=True,
        redis_backend_health_check_interval=30,
        result_expires=86400,
        # Steps report to Postgres; only queries and ended operations store results, explicitly.
        task_ignore_result=True,
        task_track_started=False,
        # Early acknowledgement: the lease in Postgres owns redelivery (late ones run twice when
        # the connection blinks).
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_default_queue="control",
        task_create_missing_queues=True,
        worker_consumer="workers.consumer:Consumer",
        worker_send_task_events=True,
        task_send_sent_event=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_disable_rate_limits=True,
        # The threads pool cannot cancel; the lease decides who may go on.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # A shelve file is corrupted by kill -9; nothing needs to be remembered between beats.
        beat_scheduler="workers.beat:CalmScheduler",
        beat_max_loop_interval=1,
        beat_schedule=_schedule(settings),
        timezone="UTC",
    )
    return app


def _transport_options(node: str) -> dict[str, Any]:
    return {
        # Nobody else's clock may redeliver this process's messages.
        "unacked_key": f"unacked.{node}",
        "unacked_index_key": f"unacked_index.{node}",
        "unacked_mutex_key": f"unacked_mutex.{node}",
        "visibility_timeout": 900,
        "socket_timeout": 5,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 15,
        "priority_steps": [0],
        "client_name": node,
    }


def _schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    return {
        "sweep": {
            "task": SWEEP,
            "schedule": settings.sweep_interval_s,
            "options": {"queue": "control"},
        },
        "power-sync": {
            "task": FAN_OUT_POWER_SYNC,
            "schedule": settings.power_sync_interval_s,
            "options": {"queue": "control"},
        },
        "image-upkeep": {
            "task": FAN_OUT_IMAGE_UPKEEP,
            "schedule": settings.image_upkeep_interval_s,
            "options": {"queue": "control"},
        },
    }


def host_queue(name: str) -> Queue:
    """Return the declaration of a host's queue."""
    return Queue(f"host.{name}", routing_key=f"host.{name}")
