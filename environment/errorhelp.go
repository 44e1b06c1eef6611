package environment

import "slices"

// The pages that refusals point to.
var (
	helpAgent = Link{"Enable the IP Masquerade agent in Cloud Composer environments",
		"https://cloud.google.com/composer/docs/composer-1/enable-ip-masquerade-agent"}
	helpCreate = Link{"Create Cloud Composer environments",
		"https://cloud.google.com/composer/docs/composer-1/create-environments"}
	helpVersions = Link{"Cloud Composer version list",
		"https://cloud.google.com/composer/docs/concepts/versioning/composer-versions"}
	helpUpgrade = Link{"Upgrade environments",
		"https://cloud.google.com/composer/docs/composer-1/upgrade-environments"}
	helpSharedVPC = Link{"Configure Shared VPC networking",
		"https://cloud.google.com/composer/docs/composer-1/configure-shared-vpc"}
	helpPrivate = Link{"Configure Private IP networking",
		"https://cloud.google.com/composer/docs/composer-1/configure-private-ip"}
	helpUpdate = Link{"Method: projects.locations.environments.patch",
		"https://cloud.google.com/composer/docs/reference/rest/v1/projects.locations.environments/patch"}
	helpAgentConfig = Link{"Configuring an IP masquerade agent in Standard clusters",
		"https://cloud.google.com/kubernetes-engine/docs/how-to/ip-masquerade-agent"}
)

// helpFor says which page helps with a reason.
var helpFor = map[string]Link{
	"IP_MASQ_AGENT_REQUIRES_IP_ALIAS":     helpAgent,
	"IP_ALIAS_REQUIRED":                   helpCreate,
	"FIELD_NOT_SUPPORTED_IN_VERSION":      helpVersions,
	"IMAGE_VERSION_UNSUPPORTED":           helpVersions,
	"IMAGE_VERSION_MALFORMED":             helpVersions,
	"IMAGE_UPGRADE_NOT_ALLOWED":           helpUpgrade,
	"FIELD_IMMUTABLE":                     helpUpdate,
	"UPDATE_MASK_REQUIRED":                helpUpdate,
	"UPDATE_MASK_UNKNOWN_PATH":            helpUpdate,
	"UPDATE_TYPES_MIXED":                  helpUpdate,
	"PRIVATE_ENVIRONMENT_REQUIRED":        helpPrivate,
	"SUBNETWORK_NOT_FOUND":                helpSharedVPC,
	"NETWORK_NOT_FOUND":                   helpSharedVPC,
	"SECONDARY_RANGE_NOT_FOUND":           helpSharedVPC,
	"IP_RANGE_OVERLAP":                    helpPrivate,
	"AGENT_CONFIG_UNCOVERS_CLUSTER_RANGE": helpAgentConfig,
	"AGENT_CONFIG_INVALID":                helpAgentConfig,
}

// helpOf are the pages that help with violations, each once.
func helpOf(violations []Violation) []Link {
	var help []Link
	for _, v := range violations {
		link, known := helpFor[v.Reason]
		if within(v.Field, fieldAgent) {
			link, known = helpAgent, true
		}
		if known && !slices.Contains(help, link) {
			help = append(help, link)
		}
	}
	return help
}
