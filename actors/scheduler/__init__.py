"""The scheduler: decides which sequence runs how many tokens in which step, and which blocks hold its cache.

scheduler                                  the actor: requests come, plans go, tokens come back
sequence, arrivals                         a request as it is known here, and how it is made of what arrives
waiting, planner, plan_builder,            which sequences run in the next step, with how many tokens,
prefill_budget, plan_timing                and when that is decided
holdings, slot_table, pool, blocks,        what sequences hold on the device, and what of it is shared
prefix                                     and handed out again
executor_deaths, quarantine                what becomes of sequences whose executor died
config                                     what it is told when it is made
adapters                                   which adapters requests may name
outgoing, logprobs, metrics                what others are told of sequences and steps
"""
