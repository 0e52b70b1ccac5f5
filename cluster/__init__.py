"""Ray, and nothing else: sessions, placement, actor groups, preflight. Knows neither RL nor data.

with ray_session(config) as session:                           cluster.session    connects, cleans up, verifies
    placement = session.own(place(roles, …))                   cluster.placement  reserves, or says what is missing
                                                               cluster.packing    which worker on which node
    group = session.own(ActorGroup.start("learner", …))        cluster.group      starts, calls, names who failed
    preflight([group])                                         cluster.preflight  same versions and code everywhere
"""
