"""The Ray Serve deployment: one replica holds one `Service` behind the guard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from cytolake.serving.api import build_app
from cytolake.serving.guard import AsgiApp
from cytolake.serving.service import Minibatch, RunMinibatch, RunMinibatches, Service, ServingConfig


class ServedEncoder:
    """One replica: answers HTTP requests with the champion."""

    def __init__(self, config: ServingConfig) -> None:
        self._service = Service(config, batched)
        self._service.load()

    def __serve_build_asgi_app__(self) -> AsgiApp:
        return build_app(self._service)

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Any change of `user_config` makes every replica look at alias and tables now."""
        self._service.load()


def build_application(config: ServingConfig, environment: Mapping[str, str]) -> serve.Application:
    """The application for `serve run`.

    Args:
        config: What every replica serves.
        environment: Variables of the replicas' processes.
    """
    deployment: Any = serve.deployment(
        serve.ingress()(ServedEncoder),
        name="ServedEncoder",
        ray_actor_options={"runtime_env": {"env_vars": dict(environment)}},
        max_ongoing_requests=16,  # times max_array_body_bytes: 1 GiB of bodies in a replica at most
        max_queued_requests=24,  # who waits behind 40 others waits 2.5 times as long as behind 16; more are told 429
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        health_check_timeout_s=60,
    )
    application: serve.Application = deployment.bind(config)
    return application


def batched(run: RunMinibatches, config: ServingConfig) -> RunMinibatch:
    """Dynamic batching: minibatches that wait together run as one, up to `minibatch_tokens`."""

    async def run_minibatches(minibatches: list[Minibatch]) -> list[Any]:
        return await run(minibatches)

    together: RunMinibatch = serve.batch(
        max_batch_size=config.minibatch_tokens,
        batch_wait_timeout_s=config.batch_wait_s,
        # Ray Serve refuses one item above the size; a single crop of very many channels must pass all the same.
        batch_size_fn=lambda minibatches: sum(min(m.n_tokens, config.minibatch_tokens) for m in minibatches),
    )(run_minibatches)
    return together
