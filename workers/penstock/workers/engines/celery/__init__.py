"""The Celery engine: a Celery application and worker whose jobs run in the executor.

Celery's command line clients, remote control, signals and monitors find a worker of theirs. Its task consumer consumes
nothing: jobs come in through the same intake as on every engine.
"""
