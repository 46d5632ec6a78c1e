"""Short transactions on Postgres; never one open across a hypervisor call or a sleep."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import tenacity
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

T = TypeVar("T")
S = TypeVar("S", Session, Connection)

STATEMENT_TIMEOUT_MS = 30_000
LOCK_TIMEOUT_MS = 10_000
PATIENCE_S = 20.0
# Said by a trigger to whoever writes an event: see models/event.py.
NEWS_SQLSTATE = "IK001"


def is_retryable(exc: BaseException) -> bool:
    """True when the transaction did not happen and may be run again.

    Lost connections, serialization failures (40001), deadlocks (40P01), a lock that was not free in
    time (55P03) and a server that is starting or stopping (57P0x). A lost connection during COMMIT
    is ambiguous: callers therefore only run statements whose repetition is harmless.
    """
    if not isinstance(exc, DBAPIError):
        return False
    state = getattr(exc.orig, "sqlstate", None)
    if exc.connection_invalidated or (isinstance(exc, OperationalError) and state is None):
        return True
    return state in {
        "40001",
        "40P01",
        "55P03",
        "57P01",
        "57P02",
        "57P03",
        "08006",
        "08001",
        "08003",
    }


# Made once: what it says is the same each time, and it keeps its state by thread.
_RETRYING = tenacity.Retrying(
    retry=tenacity.retry_if_exception(is_retryable),
    wait=tenacity.wait_exponential_jitter(multiplier=0.05, max=1),
    stop=tenacity.stop_after_delay(PATIENCE_S),
    reraise=True,
)


class Database:
    """The engine and the one way to run a transaction.

    Args:
        url: an SQLAlchemy URL, ``postgresql+psycopg://…``.
        pool_size: connections kept; the number of threads that use the database at once.
        application_name: shown in ``pg_stat_activity``.
        prepared_statements: whether the server keeps plans; False behind a transaction-pooling
            PgBouncer older than 1.21, which cannot follow them.
        on_news: called after a commit that wrote events; must return at once.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 8,
        application_name: str = "innkeeper",
        prepared_statements: bool = True,
        on_news: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_news = on_news
        # What a thread's transaction was told on its connection, which no other thread has then.
        self._heard = threading.local()
        self.engine: Engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=10,
            pool_use_lifo=True,
            # A guest's spec holds user data; errors end in logs.
            hide_parameters=True,
            connect_args={
                "application_name": application_name,
                "connect_timeout": 5,
                # At the connection and not per transaction, which would cost a round trip each
                # time; PgBouncer passes them on with ignore_startup_parameters = options.
                "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}"
                f" -c lock_timeout={LOCK_TIMEOUT_MS}",
                # Planning the claim takes longer than running it.
                "prepare_threshold": 3 if prepared_statements else None,
                # A severed network must not hold a thread for the kernel's two hours.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 20_000,
            },
        )
        event.listen(self.engine, "connect", self._listen)

        # The same pool; BEGIN and COMMIT are round trips that one statement does not need.
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Yield a session; commit at the end of the block, roll back on an exception."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session
        self._pass_on_news()

    def run(self, work: Callable[[Session], T], *, patience_s: float = PATIENCE_S) -> T:
        """Run ``work`` in a transaction, again on lost connections and serialization failures.

        Args:
            work: must be harmless when run twice: its statements match on what they expect.
            patience_s: how long to go on trying.

        Raises:
            sqlalchemy.exc.DBAPIError: when Postgres stays away for longer.
        """
        return self._run(work, self.transaction, patience_s)

    def run_one(self, work: Callable[[Connection], T], *, patience_s: float = PATIENCE_S) -> T:
        """Run ``work`` that is one plain statement, which is a transaction by itself.

        Args:
            work: executes one statement, harmless when run twice.
            patience_s: how long to go on trying.

        Raises:
            sqlalchemy.exc.DBAPIError: when Postgres stays away for longer.
        """
        return self._run(work, self._statement, patience_s)

    @contextmanager
    def _statement(self) -> Iterator[Connection]:
        with self._autocommit.connect() as connection:
            yield connection
        self._pass_on_news()

    @staticmethod
    def _run(
        work: Callable[[S], T],
        begin: Callable[[], AbstractContextManager[S]],
        patience_s: float,
    ) -> T:
        retrying = _RETRYING
        if patience_s != PATIENCE_S:
            retrying = retrying.copy(stop=tenacity.stop_after_delay(patience_s))
        for attempt in retrying:
            with attempt, begin() as handle:
                result = work(handle)
        return result

    def _pass_on_news(self) -> None:
        if getattr(self._heard, "news", False):
            self._heard.news = False
            self._on_news()

    def _listen(self, connection: Any, _record: Any) -> None:
        def hear(notice: Any) -> None:
            if notice.sqlstate == NEWS_SQLSTATE:
                self._heard.news = True

        connection.add_notice_handler(hear)

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()
