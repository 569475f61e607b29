"""What the documentation shows, run.

Every fenced block of README.md, docs/ and the clients' pages is taken by a test (see
`tests.support.pages`), here or where its topic is tested, or stands in `not_run` with the reason.
By language:

========================  ====================================================================
``sh``, ``console``       run in a shell beside a daemon; of ``console`` the output is compared
``toml``                  read by ``messagebusd check-config``
``json``                  answers: compared with the daemon's, and held against its description;
                          the webhook's question: compared with a real one
``html``, ``js``          run in Node, pages with the client that the daemon serves
``ts``                    all compiled; those that publish and follow are run
``python``, ``ruby``      run
``go``                    a whole application is run, the token's snippet compiled
``php``, ``blade``        of hosts/laravel.md what is plain PHP is run, what needs Laravel parsed
``nginx``, ``redis``      given to the real servers
========================  ====================================================================
"""
