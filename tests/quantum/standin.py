"""A stand-in for a vendor's service: jobs that outlive the object that submitted them, and faults on demand."""

import time

from qiskit.primitives import StatevectorSampler

TOKEN = "a-secret-token-of-an-account"


class Job:
    def __init__(self, service, name, inner):
        self.service, self.name, self.inner = service, name, inner

    def job_id(self):
        if self.service.id_faults:
            raise self.service.id_faults.pop(0)
        return self.name

    def status(self):
        return self.service.status

    def result(self):
        self.service.collected += 1
        self.service.on_result()
        fault = self.service.result_faults.pop(0) if self.service.result_faults else None
        if isinstance(fault, float):
            time.sleep(fault)
        elif fault is not None:
            raise fault
        return self.inner.result()


class Service:
    """Keeps jobs; counts what was paid for."""

    def __init__(self):
        self.token = TOKEN
        self.jobs = {}
        self.circuits = 0
        self.collected = 0
        self.status = "ERROR"  # of jobs whose result raises
        self.submit_faults = []
        self.result_faults = []
        self.fetch_faults = []
        self.on_submit = self.on_result = lambda: None
        self.short = set()  # positions of circuits that get too few shots
        self.id_faults = []

    def job(self, name):
        if self.fetch_faults:
            raise self.fetch_faults.pop(0)
        return self.jobs[name]

    def sampler(self):
        return Sampler(self)


class Sampler:
    """Has the interface of ``BaseSamplerV2``."""

    def __init__(self, mode):
        self.mode = mode
        self.inner = StatevectorSampler(seed=7)

    def run(self, pubs, *, shots=None):
        service = self.mode
        if service.submit_faults:
            fault = service.submit_faults.pop(0)
            if fault is not None:
                raise fault
        service.circuits += len(pubs)
        name = f"job-{len(service.jobs)}"
        pubs = [(*pub[:-1], pub[-1] - pub[-1] // 10) if k in service.short else pub for k, pub in enumerate(pubs)]
        service.jobs[name] = Job(service, name, self.inner.run(list(pubs), shots=shots))
        service.on_submit()
        return service.jobs[name]
