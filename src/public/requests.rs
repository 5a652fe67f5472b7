//! Request schemas for the API reference. The handlers are more lenient: they trim strings, accept
//! an integer as a string of its digits, and ignore unknown fields.

use super::field_limits::{FIELD, FINGERPRINT, MACHINE_ID, REF, TOKEN, VERSION};
use iptunnel_domain::address::HostName;
use iptunnel_domain::server::Server;
use utoipa::ToSchema;
use utoipa::openapi::{ObjectBuilder, Type};

fn text(max: usize, example: &str, description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(max))
        .examples([example])
        .description(Some(description))
}

fn cut(max: usize, example: &str, what: &str) -> ObjectBuilder {
    let description = format!("{what} Cut after {max} characters.");
    ObjectBuilder::new()
        .schema_type(Type::String)
        .examples([example])
        .description(Some(description))
}

fn install_code() -> ObjectBuilder {
    let description = "The code from the product's page, in upper or lower case. If it is \
                       absent, license_key is read instead.";
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^[A-Za-z]{3}-[A-Za-z]{2}(-[A-HJ-NP-Za-hj-np-z2-9]{6}){3}$"))
        .examples(["IPT-SD-XXXXXX-XXXXXX-XXXXXX"])
        .description(Some(description))
}

fn machine_id() -> ObjectBuilder {
    let description = "A unique id of this machine, such as the content of \
                       /etc/machine-id. Opaque to the server.";
    text(MACHINE_ID, "3f2b8c9d0a1e4f56b7c8d9e0f1a2b3c4", description)
}

fn ssh_fingerprint() -> ObjectBuilder {
    let description = "The fingerprint of the machine's SSH host key. Opaque to the server.";
    text(FINGERPRINT, "SHA256:Qm9ndXNGaW5nZXJwcmludE9mQUtleQ", description)
}

fn product() -> ObjectBuilder {
    let description = "The product's name, in upper or lower case. It must match the path.";
    ObjectBuilder::new()
        .schema_type(Type::String)
        .examples(["slowdns"])
        .description(Some(description))
}

fn installer_version() -> ObjectBuilder {
    cut(VERSION, "2026.03.31", "The version of the installer.")
}

fn requested_ref() -> ObjectBuilder {
    cut(REF, "main", "The version to install. Default: main.")
}

fn precheck_token() -> ObjectBuilder {
    text(TOKEN, "eyJhbGciOiJIUzI1NiJ9...", "The token from the precheck response.")
}

fn hostname() -> ObjectBuilder {
    let description = "The server's full host name: two or more labels of letters, digits and \
                       inner hyphens, the last one not all digits.";
    text(HostName::MAX_BYTES, "ns1.example.com", description)
}

fn public_ip() -> ObjectBuilder {
    let description = "The server's IPv4 or IPv6 address. It must be globally reachable.";
    ObjectBuilder::new()
        .schema_type(Type::String)
        .examples(["1.2.3.4"])
        .description(Some(description))
}

fn activation_id() -> ObjectBuilder {
    let description = "The id from the activate response.";
    ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .examples(["act_a1b2c3d4e5f6a7b8"])
        .description(Some(description))
}

fn install_token() -> ObjectBuilder {
    text(TOKEN, "eyJhbGciOiJIUzI1NiJ9...", "The token from the activate response.")
}

fn optional_install_token() -> ObjectBuilder {
    let description = "The token from the activate response, if available. It must belong to \
                       this activation, but may have expired.";
    ObjectBuilder::new()
        .schema_type(Type::String)
        .max_length(Some(TOKEN))
        .examples(["eyJhbGciOiJIUzI1NiJ9..."])
        .description(Some(description))
}

fn enrolling_token() -> ObjectBuilder {
    let description = "An access token with the role enrol, an install ticket, the install token of a \
                       confirmed install, or the master token.";
    text(FIELD, "ACCESS_TOKEN", description)
}

fn ticket_address() -> ObjectBuilder {
    let description = "The address of the machine. Default: the caller's own.";
    ObjectBuilder::new()
        .schema_type(Type::String)
        .examples(["1.2.3.4"])
        .description(Some(description))
}

fn ticket_ttl() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(60))
        .maximum(Some(3600))
        .examples([600])
        .description(Some("For how many seconds the ticket is good. Default: 600."))
}

fn client_id() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(1))
        .examples([1])
        .description(Some("The number of the enrolling access token, for an operator."))
}

fn server_hostname() -> ObjectBuilder {
    cut(Server::HOSTNAME, "ns1.example.com", "The server's host name.")
}

fn agent_token() -> ObjectBuilder {
    let description = "A secret that the machine has made for itself, for its check-ins. Keep it on the \
                       machine before the request: then a request whose response was lost can be repeated.";
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^ipa_[0-9a-f]{48}$"))
        .examples(["ipa_00112233445566778899aabbccddeeff0011223344556677"])
        .description(Some(description))
}

fn server_id() -> ObjectBuilder {
    text(FIELD, "0123456789abcdef", "The id from the registration response.")
}

/// The body of a precheck.
#[derive(ToSchema)]
#[allow(dead_code)]
pub struct PrecheckRequest {
    #[schema(schema_with = install_code)]
    install_code: String,
    #[schema(schema_with = machine_id)]
    machine_id: String,
    #[schema(schema_with = ssh_fingerprint)]
    ssh_fingerprint: String,
    #[schema(schema_with = product, required = false)]
    product: Option<String>,
    #[schema(schema_with = installer_version, required = false)]
    installer_version: Option<String>,
}

/// The body of an activate.
#[derive(ToSchema)]
#[allow(dead_code)]
pub struct ActivateRequest {
    #[schema(schema_with = install_code)]
    install_code: String,
    #[schema(schema_with = precheck_token)]
    precheck_token: String,
    #[schema(schema_with = hostname)]
    hostname: String,
    #[schema(schema_with = public_ip)]
    public_ip: String,
    #[schema(schema_with = machine_id)]
    machine_id: String,
    #[schema(schema_with = ssh_fingerprint)]
    ssh_fingerprint: String,
    #[schema(schema_with = requested_ref, required = false)]
    requested_ref: Option<String>,
    #[schema(schema_with = product, required = false)]
    product: Option<String>,
    #[schema(schema_with = installer_version, required = false)]
    installer_version: Option<String>,
}

/// The body of a confirm.
#[derive(ToSchema)]
#[allow(dead_code)]
pub struct ConfirmRequest {
    #[schema(schema_with = activation_id)]
    activation_id: String,
    #[schema(schema_with = install_token)]
    install_token: String,
}

/// The body of a release.
#[derive(ToSchema)]
#[allow(dead_code)]
pub struct ReleaseRequest {
    #[schema(schema_with = activation_id)]
    activation_id: String,
    #[schema(schema_with = optional_install_token, required = false)]
    install_token: Option<String>,
}

/// The body of a registration.
#[derive(ToSchema)]
#[allow(dead_code)]
pub struct RegisterRequest {
    #[schema(schema_with = enrolling_token)]
    token: String,
    #[schema(schema_with = public_ip)]
    ip: String,
    #[schema(schema_with = server_hostname, required = false)]
    hostname: Option<String>,
    #[schema(schema_with = agent_token, required = false)]
    agent_token: Option<String>,
}

/// The body of a request for an install ticket.
#[derive(ToSchema)]
#[allow(dead_code)]
pub struct TicketRequest {
    #[schema(schema_with = ticket_address, required = false)]
    ip: Option<String>,
    #[schema(schema_with = ticket_ttl, required = false)]
    ttl_seconds: Option<u32>,
    #[schema(schema_with = client_id, required = false)]
    client_id: Option<u32>,
}

/// A body that names a server.
#[derive(ToSchema)]
#[allow(dead_code)]
pub struct ServerRequest {
    #[schema(schema_with = server_id)]
    server_id: String,
}
