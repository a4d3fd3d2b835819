"""What all tests share: the option --slow."""


def pytest_addoption(pluginmanager):
    pluginmanager.import_plugin("options")
