//! Asks one question and prints answer and receipt:
//! `cargo run -p cocoon-client --example ask -- <genesis> <bootstrap address> <chain URL> <mnemonic file> <question>`
use std::{env, fs};

use cocoon_client::{
    AnswerEvent, AskPolicy, ChainEndpoint, ChatRequest, Config, LightPeer, genesis::Genesis,
};
use cocoon_inference::{ChatRole, Message};
use futures::StreamExt;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [genesis, bootstrap, chain, mnemonic, question] = args.as_slice() else {
        anyhow::bail!("usage: ask <genesis> <bootstrap address> <chain URL> <mnemonic file> <question>");
    };
    let genesis = Genesis::load(genesis)?;
    let mut config =
        Config::new(genesis, env::temp_dir().join("cocoon-ask"), &fs::read_to_string(mnemonic)?)?;
    config.bootstrap = vec![bootstrap.parse()?];
    config.chain = ChainEndpoint { url: chain.clone(), api_key: env::var("COCOON_CHAIN_KEY").ok() };
    config.policy = AskPolicy { minimum: "test".parse()?, ..AskPolicy::default() };

    let peer = LightPeer::start(config).await?;
    let model = peer.models().await.first().map(|model| model.name.clone()).unwrap_or_default();
    let messages = vec![Message::new(ChatRole::User, question.clone())];
    let mut answer = peer.chat(ChatRequest::new(model, messages)).await?;
    while let Some(event) = answer.next().await {
        match event? {
            AnswerEvent::Started { leg } => eprintln!("[{} via {}]", leg.assurance, leg.worker),
            AnswerEvent::Prepared { prompt_tokens, .. } => eprintln!("[{prompt_tokens} tokens read]"),
            AnswerEvent::Tokens(tokens) => tokens.iter().for_each(|token| print!("{}", token.text)),
            AnswerEvent::Failover { from, why } => eprintln!("[{from} failed: {why}]"),
            AnswerEvent::Finished { text, receipt, .. } => println!("{text}\n{receipt:#?}"),
        }
    }
    peer.close().await;
    Ok(())
}
