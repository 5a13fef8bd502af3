"""The Ray Serve deployment: each replica holds one `Service` behind the guard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from cytolake.serving.api import build_app
from cytolake.serving.guard import AsgiApp
from cytolake.serving.service import EmbedTask, RunTask, RunTasks, Service, ServingConfig


class ServedEncoder:
    """One replica, which answers HTTP requests with the models of its aliases."""

    def __init__(self, config: ServingConfig) -> None:
        self._service = Service(config, batched)
        self._service.load()

    def __serve_build_asgi_app__(self) -> AsgiApp:
        return build_app(self._service)

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Check alias and tables now: Ray Serve calls this in every replica when `user_config` changes."""
        self._service.load()


def build_application(config: ServingConfig, environment: Mapping[str, str]) -> serve.Application:
    """The application for `serve run`.

    Args:
        environment: Environment variables of the replicas' processes.
    """
    deployment: Any = serve.deployment(
        serve.ingress()(ServedEncoder),
        name="ServedEncoder",
        ray_actor_options={"runtime_env": {"env_vars": dict(environment)}},
        max_ongoing_requests=16,  # times max_array_body_bytes: 1 GiB of bodies in a replica at most
        max_queued_requests=24,  # behind 40 requests the wait is 2.5 times that behind 16; further ones get 429
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        health_check_timeout_s=60,
    )
    application: serve.Application = deployment.bind(config)
    return application


def batched(run: RunTasks, config: ServingConfig) -> RunTask:
    """Dynamic batching: waiting tasks share a forward pass of up to `minibatch_tokens` tokens."""

    async def run_tasks(tasks: list[EmbedTask]) -> list[Any]:
        return await run(tasks)

    together: RunTask = serve.batch(
        max_batch_size=config.minibatch_tokens,
        batch_wait_timeout_s=config.batch_wait_s,
        # Ray Serve refuses an item above the batch size; a crop of very many channels must pass nevertheless.
        batch_size_fn=lambda tasks: sum(min(m.n_tokens, config.minibatch_tokens) for m in tasks),
    )(run_tasks)
    return together
